const tip=document.getElementById('tip');
document.addEventListener('mousemove',e=>{const t=e.target.dataset&&e.target.dataset.t;tip.style.display=t?'block':'none';if(t){tip.textContent=t;tip.style.left=Math.min(e.clientX+14,innerWidth-350)+'px';tip.style.top=(e.clientY+16)+'px'}});
